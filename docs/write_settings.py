"""Write the table of settings in ess.md: ``python docs/write_settings.py``. A test fails if the table is out of date."""

from pathlib import Path

from cli.ess.training.settings import settings_table

DOCUMENT = Path(__file__).with_name("ess.md")
BEGIN = "<!-- the table of settings, written by docs/write_settings.py -->\n"
END = "<!-- end of the table of settings -->\n"


def updated(text: str) -> str:
    """The text of ess.md with the current table between the two markers."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
