//! Device-mapper ioctls: verity tables made, read back and removed.
