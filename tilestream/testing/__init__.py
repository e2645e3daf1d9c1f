"""For tests of your own parts: behaviour suites to inherit, and openly licensed slides by checksum."""

from tilestream.testing.encoders import EncoderSuite
from tilestream.testing.heads import HeadSuite
from tilestream.testing.slides import TEST_SLIDES, TestSlide, fetch_slide
from tilestream.testing.sources import SourceSuite

__all__ = ["TEST_SLIDES", "EncoderSuite", "HeadSuite", "SourceSuite", "TestSlide", "fetch_slide"]
