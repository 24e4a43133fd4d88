"""A virtual instrument: a crystal, a detector that counts its photons, and a filewriter that stores them."""
