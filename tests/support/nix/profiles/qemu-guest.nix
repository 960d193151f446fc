# In the place of nixpkgs' own file, whose drivers no option in the tests tells of: this shows that it is imported.
{ boot.kernelParams = [ "qemu-guest" ]; }
