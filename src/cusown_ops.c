/*-------------------------------------------------------------------------
 *
 * cusown_ops.c
 *	  Loading the library: settings, then one init per module.
 *
 * Nothing here needs shared_preload_libraries.  Settings become known when
 * the library is loaded, by the first call of a function of ours or by
 * preloading, which alone gives us shared memory.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "utils/guc.h"

#include "binding.h"
#include "cusown_ops.h"
#include "guard.h"
#include "shmem.h"
#include "worker.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

/*
 * cusown_ops.app_schema: the attached application that verbs work on.  Empty
 * means the only one attached; with several attached and none chosen a verb
 * raises UO001.
 */
char	   *cusown_app_schema = NULL;

/*
 * cusown_ops.booking_ttl: age in seconds at which a pending booking is due to
 * expire, where the caller names no other.
 */
int			cusown_booking_ttl = 86400;

/*
 * cusown_ops.processing_grace: seconds after its creation during which a
 * payment that is initiated, pending or processing keeps its booking from
 * expiring.  Older ones are abandoned checkouts.
 */
int			cusown_processing_grace = 3600;

/*
 * cusown_ops.paid_pending_grace: seconds for which a completed payment's booking
 * may be pending before cusown_payment_mismatches() tells of it.
 */
int			cusown_paid_pending_grace = 86400;

/*
 * cusown_ops.batch_size: how many bookings one statement of a verb handles.
 */
int			cusown_batch_size = 500;

/*
 * cusown_ops.job_run_retention: how many runs of each job and outcome the
 * ledger cusown_ops.job_run keeps, per application.
 */
int			cusown_job_run_retention = 1000;

/*
 * cusown_ops.change_retention: seconds for which cusown_changes_since() can
 * go back; older changes go with the job prune_history.
 */
int			cusown_change_retention = 7 * 86400;

/*
 * cusown_ops.notify: whether changes are told by NOTIFY as well.  Of transactions
 * that do, in all databases of the server, one commits at a time, and where commits
 * wait for the disk that limits how many there are in a second.
 */
bool		cusown_notify = true;

/*
 * cusown_ops.lazy_expire_interval: seconds in which cusown_expire_if_due()
 * works once at most, over all sessions.  0: at every call.
 */
int			cusown_lazy_expire_interval = 30;

/*
 * cusown_ops.undo_window: seconds in which a confirmation or a rejection can be
 * undone.
 */
int			cusown_undo_window = 300;

/*
 * cusown_ops.confirm_past: whether a booking can be confirmed whose slot is
 * over.
 */
bool		cusown_confirm_past = false;

/*
 * cusown_ops.webhook_ttl: seconds for which a webhook event waits for its payment.
 */
int			cusown_webhook_ttl = 3 * 86400;

/*
 * cusown_ops.webhook_retention: seconds for which bodies of webhooks are kept.
 */
int			cusown_webhook_retention = 30 * 86400;

/*
 * cusown_ops.alert_hold: seconds for which a symptom must have been quiet before
 * its alert is resolved.
 */
int			cusown_alert_hold = 300;

static void
define_settings(void)
{
	DefineCustomStringVariable("cusown_ops.app_schema",
							   "Schema of the attached application that functions work on.",
							   "Empty means the only one that is attached.",
							   &cusown_app_schema, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.booking_ttl",
							"Age at which a pending booking is due to expire.",
							NULL,
							&cusown_booking_ttl, 86400, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.processing_grace",
							"How long after its creation an unfinished payment keeps its booking from expiring.",
							NULL,
							&cusown_processing_grace, 3600, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.paid_pending_grace",
							"How long a booking may be pending after its payment was completed.",
							"Then cusown_payment_mismatches() tells of it.",
							&cusown_paid_pending_grace, 86400, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.batch_size",
							"Number of bookings that one statement of a function handles.",
							NULL,
							&cusown_batch_size, 500, 1, CUSOWN_MAX_BATCH_SIZE,
							PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.job_run_retention",
							"Number of runs of each job and outcome that the ledger keeps.",
							NULL,
							&cusown_job_run_retention, 1000, 1, 1000000,
							PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.change_retention",
							"How long changes are kept for cusown_changes_since().",
							NULL,
							&cusown_change_retention, 7 * 86400, 60, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomBoolVariable("cusown_ops.notify",
							 "Whether changes are told by NOTIFY as well.",
							 "Transactions that do commit one after the other.",
							 &cusown_notify, true,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.lazy_expire_interval",
							"How often cusown_expire_if_due() works at most, over all sessions.",
							"0 means at every call.",
							&cusown_lazy_expire_interval, 30, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.undo_window",
							"How long after it a confirmation or a rejection can be undone.",
							NULL,
							&cusown_undo_window, 300, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomBoolVariable("cusown_ops.confirm_past",
							 "Whether a booking can be confirmed whose slot is over.",
							 NULL, &cusown_confirm_past, false,
							 PGC_SUSET, 0, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.webhook_ttl",
							"How long a webhook event waits for its payment.",
							"Then it is unmatched, and on the worklist.",
							&cusown_webhook_ttl, 3 * 86400, 60, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.webhook_retention",
							"How long bodies of webhooks are kept.",
							"Their hashes are kept, so that none is applied twice.",
							&cusown_webhook_retention, 30 * 86400, 60, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable("cusown_ops.alert_hold",
							"How long a symptom must be quiet before its alert is resolved.",
							"One that fires again before goes on as the same alert.",
							&cusown_alert_hold, 300, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	worker_define_settings();
	MarkGUCPrefixReserved("cusown_ops");
}

void
_PG_init(void)
{
	define_settings();
	binding_init();
	guard_init();
	shmem_init();
	worker_init();
}
