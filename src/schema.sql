\echo Use "CREATE EXTENSION cusown_ops" to load this file. \quit

/* cusown_ops: install script, built from src/ in the order of the Makefile */

CREATE SCHEMA cusown_ops;

COMMENT ON SCHEMA cusown_ops IS
'Tables, views and private functions of the extension cusown_ops';

