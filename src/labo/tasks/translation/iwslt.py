"""The files of the IWSLT evaluations as published: tagged training files, and XML with numbered segments.

Source: Cettolo et al., *WIT3: Web Inventory of Transcribed and Translated Talks*, EAMT 2012.
"""

from __future__ import annotations

import html
import re

from labo.tasks.translation.pairs import Pairs

_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.DOTALL)
# What stands in a training file beside its sentences; titles and descriptions are sentences too.
_SENTENCES_IN = re.compile(r"^<(title|description)>(.*)</\1>$")
_ABOUT = re.compile(r"^</?(url|keywords|speaker|talkid|reviewer|translator|transcript|doc)\b")
# One of so many training pairs validates where the data have no validation part, as in the recipe that is in use.
EVERY = 23


def sentences(lines: list[str], name: str) -> list[str]:
    """The sentences among the lines of a file: those that IWSLT's two forms hold, all lines of other files.

    Example:
        >>> sentences(["<url>http://x</url>", "<title>On bees</title>", "Bees hum."], "train.tags.de-en.en")
        ['On bees', 'Bees hum.']
        >>> sentences(['<doc><seg id="1"> Tom &amp; Ann </seg>', "</doc>"], "IWSLT14.TED.tst2010.de-en.en.xml")
        ['Tom & Ann']
    """
    name = name.lower().removesuffix(".gz")
    if name.endswith(".xml"):
        return [html.unescape(text).strip() for text in _SEGMENT.findall("\n".join(lines))]
    if not name.startswith("train.tags."):
        return lines
    found = []
    for line in lines:
        stripped = line.strip()
        inside = _SENTENCES_IN.match(stripped)
        if inside:
            found.append(inside.group(2).strip())
        elif not _ABOUT.match(stripped):
            found.append(stripped)
    return found


def held_out(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """(training pairs, validation pairs): one of every 23, spread over the talks."""
    count = len(pairs)
    trained = [place for place in range(count) if (place + 1) % EVERY]
    return pairs.take(trained), pairs.take(range(EVERY - 1, count, EVERY))
