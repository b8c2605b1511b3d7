mod checksums;
mod crash;
mod sizes;
mod volumes;
mod world;
