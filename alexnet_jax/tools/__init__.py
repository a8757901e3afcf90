"""What people do with a net."""
