"""What a model looks at and what it reads: figures, relevance maps and probes."""
