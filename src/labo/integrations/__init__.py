"""The losses where people train. A room's library is imported with the room, never with `labo`."""
