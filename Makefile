# cusown_ops: operational runbooks of a booking application, as functions

EXTENSION = cusown_ops
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(srcdir)/cusown_ops.control)

MODULE_big = cusown_ops
OBJS = \
	src/alert.o \
	src/appointment.o \
	src/attach.o \
	src/attach_advice.o \
	src/attach_check.o \
	src/attach_index.o \
	src/attach_mapping.o \
	src/attach_names.o \
	src/attach_remedy.o \
	src/attach_trigger.o \
	src/attention.o \
	src/audit.o \
	src/binding.o \
	src/booking.o \
	src/cancel.o \
	src/census.o \
	src/change.o \
	src/confirm.o \
	src/constraint.o \
	src/contender.o \
	src/cron.o \
	src/cron_health.o \
	src/cusown_ops.o \
	src/ddl.o \
	src/double_booking.o \
	src/due.o \
	src/expiry.o \
	src/give_way.o \
	src/grant.o \
	src/guard.o \
	src/guard_install.o \
	src/header.o \
	src/health.o \
	src/history.o \
	src/hold.o \
	src/idempotency.o \
	src/job.o \
	src/launcher.o \
	src/lazy.o \
	src/ledger.o \
	src/metric.o \
	src/missing_index.o \
	src/no_show.o \
	src/overlap.o \
	src/payment.o \
	src/payment_evidence.o \
	src/payment_expiry.o \
	src/payment_facts.o \
	src/payment_mismatch.o \
	src/payment_refund.o \
	src/reconcile.o \
	src/reconcile_attention.o \
	src/reconcile_match.o \
	src/refund.o \
	src/repair.o \
	src/resolve.o \
	src/row_check.o \
	src/row_lock.o \
	src/runbook.o \
	src/runbook_application_deployment.o \
	src/runbook_authentication.o \
	src/runbook_backup_and_restore.o \
	src/runbook_cron_failure.o \
	src/runbook_database_migration.o \
	src/runbook_database_performance.o \
	src/runbook_double_booking.o \
	src/runbook_emergency_contacts.o \
	src/runbook_high_error_rate.o \
	src/runbook_payment_mismatch.o \
	src/runbook_rate_limiting.o \
	src/runbook_security_incident.o \
	src/shmem.o \
	src/signature.o \
	src/signature_parse.o \
	src/slot.o \
	src/split.o \
	src/state_machine.o \
	src/statement.o \
	src/statement_csv.o \
	src/statement_row.o \
	src/subtransaction.o \
	src/symptom.o \
	src/takeover.o \
	src/template.o \
	src/turn.o \
	src/undo.o \
	src/uuid_list.o \
	src/verb.o \
	src/visit.o \
	src/wall_clock.o \
	src/webhook.o \
	src/webhook_apply.o \
	src/webhook_attention.o \
	src/webhook_body.o \
	src/webhook_event.o \
	src/webhook_inbox.o \
	src/webhook_retry.o \
	src/worker.o

# parts of the install script, in the order in which they are run
SQL_PARTS = \
	src/schema.sql \
	src/attach.sql \
	src/state_machine.sql \
	src/attention.sql \
	src/change.sql \
	src/job.sql \
	src/cron.sql \
	src/cron_health.sql \
	src/expiry.sql \
	src/booking.sql \
	src/guard.sql \
	src/lazy.sql \
	src/hold.sql \
	src/history.sql \
	src/no_show.sql \
	src/double_booking.sql \
	src/payment.sql \
	src/statement.sql \
	src/reconcile.sql \
	src/webhook.sql \
	src/payment_facts.sql \
	src/payment_mismatch.sql \
	src/signature.sql \
	src/idempotency.sql \
	src/worker.sql \
	src/symptom.sql \
	src/health.sql \
	src/metric.sql \
	src/runbook.sql \
	src/alert.sql \
	src/grant.sql \
	src/rights.sql

DATA_built = cusown_ops--$(EXTVERSION).sql
# the reference schema of the application, for new users and for the tests
DATA = test/fixture/cusown_app.sql test/fixture/cusown_app_mended.sql
# comforts for psql, and what an exporter for Prometheus asks for
DOCS = doc/cusown_ops.psqlrc doc/cusown_ops.queries.yaml

REGRESS = attach binding state_machine attention expiry lazy split hold no_show booking guard double_booking resolve constraint payment payment_expiry payment_guard payment_facts payment_mismatch statement reconcile signature webhook idempotency job cron cron_health worker symptom alert runbook metric health change history grant \
	hostile settings
REGRESS_OPTS = --inputdir=$(srcdir)
ISOLATION = $(patsubst $(srcdir)/test/specs/%.spec,%,$(sort $(wildcard $(srcdir)/test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=$(srcdir)/test --load-extension=cusown_ops

EXTRA_CLEAN = cusown_ops--*.sql

PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard $(srcdir)/src/*.h)

# a VPATH build has no src folder of its own yet
ifdef VPATH
$(shell mkdir -p src)
endif

$(DATA_built): $(addprefix $(srcdir)/,$(SQL_PARTS)) $(srcdir)/cusown_ops.control
	cat $(addprefix $(srcdir)/,$(SQL_PARTS)) > $@

# lets scripts read the lists above: make print-REGRESS
print-%:
	@echo $($*)
