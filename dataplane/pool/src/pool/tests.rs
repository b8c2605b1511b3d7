mod checksums;
mod crash;
mod deletion;
mod sizes;
mod volumes;
mod world;
