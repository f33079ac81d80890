#!/usr/bin/python3
"""Judge the built install script by the rules of its house.

usage: lint_install_script.py FILE
       lint_install_script.py --self-test

Prints a line per finding and exits with 1 if there is one.  The rules stand
in RULES; --self-test shows each of them a script that breaks it.

Needs pglast (Debian: python3-pglast), PostgreSQL's own parser.
"""

import re
import sys

from pglast import ast, parse_sql, parser
from pglast.visitors import Visitor

RULES = {
    "guard": "the first line is psql's guard: \\echo Use ... \\quit",
    "replace": "no CREATE OR REPLACE: it takes over an object planted before",
    "exists": "no IF NOT EXISTS: it takes over an object planted before",
    "language": "functions are LANGUAGE c or sql; no DO block",
    "path": "LANGUAGE sql and SECURITY DEFINER: search_path = pg_catalog, pg_temp",
    "no set": "C verbs and procedures have no SET: triggers need the caller's path",
    "definer": "SECURITY DEFINER only where SECURITY_DEFINER lists it",
    "alter": "a function's properties stand in its CREATE, where they are judged",
    "marks": "no @...@ within quotes: the schema's name may hold quotes itself",
    "parse": "PostgreSQL's parser understands it",
}

# Functions that may be SECURITY DEFINER.  It reads a secret that its caller
# may not see, and touches no table of the application.
SECURITY_DEFINER = {"cusown_ops.verify_signature_with_stored_secret"}

GUARD = '\\echo Use "CREATE EXTENSION cusown_ops" to load this file. \\quit'
SAFE_PATH = ["pg_catalog", "pg_temp"]
QUOTED = {"SCONST", "USCONST", "BCONST", "XCONST", "UIDENT"}


def readable(script):
    """The script as the server reads it: psql's lines blanked, the marks
    replaced by a name of the same length, so that offsets stay."""
    script = re.sub(r"^\\.*$", lambda line: " " * len(line[0]), script, flags=re.M)
    return re.sub(r"@(\w+)@", lambda mark: f"_{mark[1]}_", script)


def option(function, name):
    """The value of a function's option; None where it is not written."""
    for item in function.options or ():
        if item.defname == name:
            return item.arg
    return None


def search_path(function):
    """The names that its SET search_path gives, or None."""
    for item in function.options or ():
        if item.defname == "set" and item.arg.name == "search_path":
            return [value.val.sval for value in item.arg.args or ()]
    return None


class Judge(Visitor):
    """Collects (rule, byte offset, what) of whatever breaks a rule."""

    def __init__(self):
        self.offset = 0
        self.findings = []

    def report(self, rule, what):
        self.findings.append((rule, self.offset, what))

    def visit(self, _ancestors, node):
        """Every node: the flags have these names wherever they occur."""
        if getattr(node, "replace", False) is True:
            self.report("replace", type(node).__name__)
        if getattr(node, "if_not_exists", False) is True:
            self.report("exists", type(node).__name__)

    def visit_AlterTableCmd(self, _ancestors, node):
        if node.missing_ok and node.subtype.name == "AT_AddColumn":
            self.report("exists", "ADD COLUMN")

    def visit_AlterEnumStmt(self, _ancestors, node):
        if node.skipIfNewValExists:
            self.report("exists", "ADD VALUE")

    def visit_DoStmt(self, _ancestors, _node):
        self.report("language", "DO")

    def visit_AlterFunctionStmt(self, _ancestors, node):
        self.report("alter", ".".join(n.sval for n in node.func.objname))

    def visit_CreateFunctionStmt(self, ancestors, node):
        self.visit(ancestors, node)
        name = ".".join(part.sval for part in node.funcname)
        language = option(node, "language")
        language = language.sval.lower() if language is not None else "sql"
        definer = option(node, "security")
        definer = definer is not None and definer.boolval

        if language not in ("c", "sql"):
            self.report("language", f"{name}: {language}")
        if definer and name not in SECURITY_DEFINER:
            self.report("definer", name)
        if node.is_procedure or (language == "c" and not definer):
            if option(node, "set") is not None or definer:
                self.report("no set", name)
        elif search_path(node) != SAFE_PATH:
            self.report("path", name)


def quoted_marks(script):
    """Offsets and texts of quoted pieces that hold a mark."""
    data = re.sub(r"@(\w+)@", r"~\1~", script)
    data = re.sub(r"^\\.*$", lambda line: " " * len(line[0]), data, flags=re.M)
    data = data.encode()
    for token in parser.scan(data.decode()):
        piece = data[token.start:token.end + 1]
        quoted = token.name in QUOTED or piece.startswith(b'"')
        if quoted and re.search(rb"~\w+~", piece):
            yield token.start, piece.decode().replace("~", "@")


def lint(script):
    """The findings of a script, in its order: (rule, line, what)."""
    judge = Judge()
    text = readable(script)

    if script.split("\n", 1)[0] != GUARD:
        judge.report("guard", script.split("\n", 1)[0])
    try:
        for statement in parse_sql(text):
            judge.offset = statement.stmt_location
            judge(statement.stmt)
        for judge.offset, piece in quoted_marks(script):
            judge.report("marks", piece)
    except parser.ParseError as error:
        judge.report("parse", str(error))
    return [(rule, line_of(text, offset), what)
            for rule, offset, what in judge.findings]


def line_of(text, offset):
    """The line of a byte offset; a statement begins behind blank space."""
    data = text.encode()
    while offset < len(data) - 1 and data[offset:offset + 1].isspace():
        offset += 1
    return data.count(b"\n", 0, offset) + 1


# What breaks a rule, each behind a guard of its own, and what breaks none.
SELF_TESTS = [
    ("", "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'MODULE_PATHNAME', 'f'"),
    ("", "CREATE FUNCTION @extschema@.f() RETURNS int LANGUAGE sql"
         " SET search_path = pg_catalog, pg_temp RETURN 1"),
    ("", "CREATE FUNCTION cusown_ops.verify_signature_with_stored_secret()"
         " RETURNS int LANGUAGE c SECURITY DEFINER"
         " SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'f'"),
    ("", "DROP TABLE IF EXISTS t -- é @extschema@"),
    ("replace", "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE c"
                " AS 'MODULE_PATHNAME', 'f'"),
    ("replace", "CREATE OR REPLACE VIEW v AS SELECT 1"),
    ("exists", "CREATE TABLE IF NOT EXISTS t ()"),
    ("exists", "CREATE SCHEMA IF NOT EXISTS s"),
    ("exists", "CREATE INDEX IF NOT EXISTS i ON t (a)"),
    ("exists", "ALTER TABLE t ADD COLUMN IF NOT EXISTS a int"),
    ("exists", "ALTER TYPE e ADD VALUE IF NOT EXISTS 'a'"),
    ("language", "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql"
                 " SET search_path = pg_catalog, pg_temp AS ''"),
    ("language", "DO ''"),
    ("path", "CREATE FUNCTION f() RETURNS int RETURN 1"),
    ("path", "CREATE FUNCTION f() RETURNS int LANGUAGE sql"
             " SET search_path = public AS 'SELECT 1'"),
    ("path", "CREATE FUNCTION f() RETURNS int LANGUAGE sql"
             " SET search_path FROM CURRENT AS 'SELECT 1'"),
    ("path", "CREATE FUNCTION cusown_ops.verify_signature_with_stored_secret()"
             " RETURNS int LANGUAGE c SECURITY DEFINER AS 'MODULE_PATHNAME', 'f'"),
    ("no set", "CREATE FUNCTION f() RETURNS int LANGUAGE c"
               " SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'f'"),
    ("no set", "CREATE PROCEDURE f() LANGUAGE c SET work_mem = '1MB'"
               " AS 'MODULE_PATHNAME', 'f'"),
    ("definer", "CREATE FUNCTION f() RETURNS int LANGUAGE c SECURITY DEFINER"
                " SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'f'"),
    ("alter", "ALTER FUNCTION f() SECURITY DEFINER"),
    ("marks", "COMMENT ON SCHEMA s IS 'é see @extschema@.f'"),
    ("marks", "SELECT $a$@extschema@$a$"),
    ("marks", 'SELECT "@extschema@".f()'),
    ("parse", "CREATE TABEL t ()"),
]


def self_test():
    """The number of self-tests that went wrong."""
    wrong = 0
    if [rule for rule, _, _ in lint("SELECT 1;\n")] != ["guard"]:
        print("self-test: guard is not missed")
        wrong += 1
    for expected, statement in SELF_TESTS:
        found = [rule for rule, _, _ in lint(f"{GUARD}\n\n{statement};\n")]
        if found != ([expected] if expected else []):
            print(f"self-test: {statement}: {found}, not {expected or 'none'}")
            wrong += 1
    return wrong


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--self-test":
        sys.exit(1 if self_test() else 0)
    with open(sys.argv[1], encoding="utf-8") as file:
        findings = lint(file.read())
    for rule, line, what in findings:
        print(f"{sys.argv[1]}:{line}: {what}: {RULES[rule]}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
