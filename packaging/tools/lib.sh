# Shared by the tools beside this file. shellcheck shell=bash
# Where unpacked roots, wheels and built packages are kept between runs. All of it can be deleted:
# it is made again when it is missing.
CACHE=${SOCKS_TUNNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/socks-tunnel}

die() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# Debian's own Python in each release that a package is built for.
python_of() {
  case $1 in
    bookworm) echo 3.11 ;;
    trixie) echo 3.13 ;;
    *) die "no package is built for $1; use bookworm or trixie" ;;
  esac
}

# What the version of a release's package ends with, in Debian's manner for rebuilds.
suffix_of() {
  case $1 in
    bookworm) echo '~deb12u1' ;;
    trixie) echo '~deb13u1' ;;
    *) die "no package is built for $1; use bookworm or trixie" ;;
  esac
}
