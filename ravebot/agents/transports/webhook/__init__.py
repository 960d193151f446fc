"""Messages to agents that work elsewhere, as webhooks: signed, and sent under one id until the agent has them."""
