"""What the page in the browser asks for: facts and layers of slides by number, their pixels, selections and what is drawn."""
