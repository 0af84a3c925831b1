//! Control as its clients and hosts see it: a real store on disk, real HTTP on loopback, agents that speak the host
//! API and can be made to misbehave, and every answer held against the reference schema.

mod access;
mod agent;
mod api;
mod apps;
mod bad_input;
mod bed;
mod certificates;
mod clients;
mod commands;
mod faults;
mod forge;
mod image;
mod images;
mod leases;
mod machines;
mod moves;
mod moves_faults;
mod named_hosts;
mod outcomes;
mod reference;
mod routes;
mod strays;
mod volumes;
