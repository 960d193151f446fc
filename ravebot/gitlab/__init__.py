"""GitLab's side: webhooks and polling in; notes, emoji and archives out."""
