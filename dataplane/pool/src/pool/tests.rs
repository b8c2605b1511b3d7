mod crash;
mod volumes;
mod world;
