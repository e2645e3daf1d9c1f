"""Parts of the page that `fit` writes."""
