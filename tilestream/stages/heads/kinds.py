"""The kinds of heads that there are."""

from __future__ import annotations

from tilestream.stages.heads.detect import DetectKind
from tilestream.stages.heads.kind import HeadKind
from tilestream.stages.heads.predict_slide import SlideKind
from tilestream.stages.heads.predict_tiles import ClassifyKind
from tilestream.stages.heads.segment import SegmentKind

KINDS: dict[str, HeadKind] = {"classify": ClassifyKind(), "slide": SlideKind(), "detect": DetectKind(), "segment": SegmentKind()}
"""By `kind` of the config."""
