"""The doors of an agent in its sandbox: ports on the guest's loopback that lead to a socket of that sandbox here."""
