"""Is this maths answer right? Public: `verify`, `verify_many`."""
