"""The scripts' fixed parts, which are in files beside this one."""

from pathlib import Path


def fill(shell: str, **fields: str) -> str:
    """Returns the script for a shell: its template, with each `@NAME@` replaced by that field."""
    text = Path(__file__).with_name(f"template.{shell}").read_text(encoding="utf-8")
    for name, value in fields.items():
        marker = f"@{name}@"
        assert marker in text, f"the template for {shell} has no {marker}"
        text = text.replace(marker, value)
    return text
