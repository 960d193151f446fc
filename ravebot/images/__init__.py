"""Sandbox images: `ravebot image build` makes one. Only the command line and doctor may enter."""
