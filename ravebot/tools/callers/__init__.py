"""Who calls tools: one module for each kind, which says who it is, what it reaches, and what it may there."""
