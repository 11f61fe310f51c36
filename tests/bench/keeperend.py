"""One end of Keeper's tunnel (PyPI: keeper-pam-webrtc-rs): a command a line, each answered by a line.

Runs in the environment that `make rivals` makes, which has nothing but the wheel.
"""

import json
import sys
from typing import Any

from keeper_pam_webrtc_rs import PyTubeRegistry


def main() -> None:
    registry = PyTubeRegistry()
    made: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        match command.pop("do"):
            case "tube":
                made = registry.create_tube(
                    conversation_id="bench",
                    trickle_ice=False,
                    callback_token="TEST_CALLBACK_TOKEN",
                    krelay_server="127.0.0.1",
                    client_version="ms16.5.0",
                    ksm_config="TEST_MODE_KSM_CONFIG",  # nothing is asked of Keeper's servers
                    signal_callback=lambda _: None,
                    **command,
                )
                answer = dict(made)
            case "answered":
                registry.set_remote_description(made["tube_id"], command["sdp"], is_answer=True)
                answer = {}
            case "state":
                answer = {"state": registry.get_connection_state(made["tube_id"])}
            case _:
                return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
