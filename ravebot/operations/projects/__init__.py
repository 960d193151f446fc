"""`ravebot project`: what people who write a `.rave.yml` need, without a running bot. Only the CLI enters."""
