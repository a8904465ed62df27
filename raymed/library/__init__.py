"""The public interface: what ``import raymed`` offers, and what the command line calls."""
