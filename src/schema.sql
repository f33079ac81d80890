/* cusown_ops: install script, built from src/ in the order of the Makefile */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION cusown_ops" to load this file. \quit

CREATE SCHEMA cusown_ops;

COMMENT ON SCHEMA cusown_ops IS
'Tables, views and private functions of the extension cusown_ops';

