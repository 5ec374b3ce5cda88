//! Where the connection data of backends comes from, and whether the backends do what they say.
