"""The API platform: accounts, keys, money and requests of an installation."""
