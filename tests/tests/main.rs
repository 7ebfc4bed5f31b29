//! The integration tests: each module starts the real binaries and speaks to them as their users do.
//!
//! One program for all of them, since linking one for each takes longer than running it. Only the containers have a
//! program of their own, to be left out where there is no engine.

mod admin;
mod admin_errors;
mod arrival;
mod attacks;
mod auth_matrix;
mod auth_nethcti;
mod chaos;
mod connections;
mod copy;
mod crash;
mod docs;
mod doctor;
mod door;
mod hangups;
mod homeservers;
mod image;
mod import;
mod layers;
mod lifecycle;
mod locks;
mod logs;
mod metrics;
mod notify;
mod openapi;
mod outage;
mod outcomes;
mod pace;
mod postgres;
mod push_test;
mod pushers;
mod recovery;
mod report;
mod settings;
mod several_apis;
mod slow_clients;
mod stand_ins;
mod status;
mod stop;
mod strangers;
mod synapse;
mod synapse_logins;
mod texts;
mod tls;
mod unreadable;
mod upgrade;
