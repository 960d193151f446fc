"""Images that jobs of pipelines built: fetched, checked, converted and kept. Nothing in one is trusted."""
