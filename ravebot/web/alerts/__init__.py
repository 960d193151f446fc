"""The door for Prometheus' Alertmanager. It writes nothing itself: alerts are stored by what it is given for that."""
