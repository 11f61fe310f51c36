"""Why an instance cannot start, and the exit statuses for it (the numbers of sysexits.h)."""

from typing import Final

EXIT_UNAVAILABLE: Final = 69
EXIT_BUG: Final = 70
EXIT_CANNOT_CREATE: Final = 73
EXIT_CONFIG: Final = 78


class StartError(Exception):
    """The instance cannot start. The text is a sentence for the operator."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
