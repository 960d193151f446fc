"""Images for the machines: `ravebot image build` makes Debian images, `ravebot image check` checks any image."""
