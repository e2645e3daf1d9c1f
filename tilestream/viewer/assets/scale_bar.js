bar.setv({start: seen.start * unit, end: seen.end * unit});  // the range of the scale bar, in its own unit, is what is seen of the slide
