#![no_std]
//! The ABI.
