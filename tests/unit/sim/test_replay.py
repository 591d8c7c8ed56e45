import gzip
import json
from pathlib import Path

import pytest

from k2ray.errors import BadInput
from k2ray.sim.frames import split_frames
from k2ray.sim.replay import read_recording


def test_both_forms_are_read_and_sent_as_they_were(tmp_path: Path) -> None:
    trade = '{"e":"trade","E":1,"s":"AUSDT","t":5}'
    quote = '{"u":1,"s":"AUSDT","b":"1"}'
    lines = [(10.0, f'{{"stream":"ausdt@trade","data":{trade}}}'), (10.5, quote), (11.0, '{"result":null,"id":1}')]
    file = tmp_path / "frames.jsonl.gz"
    with gzip.open(file, "wt") as out:
        for received, frame in lines:
            out.write(json.dumps({"received": received, "frame": frame}) + "\n")
    first, second = read_recording(file)
    assert (first.stream, second.stream, second.after_s) == ("ausdt@trade", "ausdt@bookTicker", 0.5)
    assert split_frames(first.raw) == [trade.encode()]
    assert split_frames(first.combined) == [lines[0][1].encode()]
    assert split_frames(second.raw) == [quote.encode()]
    assert split_frames(second.combined) == [f'{{"stream":"ausdt@bookTicker","data":{quote}}}'.encode()]


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "frames.jsonl"
    file.write_text('{"received": 1, "frame": "{}"}\nnonsense\n')
    with pytest.raises(BadInput, match="line 2"):
        read_recording(file)
