"""A headless browser, where there is one, for the tests of pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def browse(profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Headless Chromium with nothing of its own on the network; `profile` is thrown away with the test."""
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
             "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}"]  # fmt: skip
    environment = {**os.environ, "HOME": str(profile)}
    return subprocess.run(
        [BROWSER, *flags, *options], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def width_on_a_phone(html: str, folder: Path) -> int:
    """How wide a page is, in CSS pixels, in a frame of the width of a phone, 375; `folder` takes some files."""
    # Without the policy a copy can be measured by a script; the report itself runs none.
    copy = json.dumps(re.sub(r"<meta http-equiv[^>]+>", "", html)).replace("</", "<\\/")
    frame = f"""<body><iframe style="border:0;width:375px;height:800px"></iframe><p></p><script>
        const frame = document.querySelector("iframe"), answer = document.querySelector("p");
        frame.onload = () => {{ answer.textContent = "width " + frame.contentDocument.documentElement.scrollWidth; }};
        frame.srcdoc = {copy};
        </script>"""
    (folder / "frame.html").write_text(frame, encoding="utf-8")
    done = browse(folder / "profile", "--dump-dom", (folder / "frame.html").as_uri())
    (width,) = re.findall(r"<p>width (\d+)</p><script", done.stdout)
    return int(width)
