"""Jobs of GitLab's CI that speak to ravebot: whose token one shows, and which merge request GitLab says it is of."""
