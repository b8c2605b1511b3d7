mod checksums;
mod checksums_model;
mod compare;
mod crash;
mod deletion;
mod sizes;
mod volumes;
mod world;
