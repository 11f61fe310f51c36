"""`python -m socks_tunnel` is the command `socks-tunnel`."""

import sys

from socks_tunnel.cli import main

sys.exit(main())
