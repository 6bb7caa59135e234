//! Edge-triggered message transport over UCX, TCP, Unix sockets and memory.
