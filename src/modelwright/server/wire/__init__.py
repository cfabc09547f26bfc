"""What requests and replies look like on the wire, as msgspec Structs; nothing is computed here."""
