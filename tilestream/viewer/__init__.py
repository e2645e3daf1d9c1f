"""What a person looks at: the live page and the HTML report."""
