/*-------------------------------------------------------------------------
 *
 * cusown_ops.h
 *	  The settings of cusown_ops, defined in cusown_ops.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_OPS_H
#define CUSOWN_OPS_H

/* schema of our tables, views and private functions */
#define CUSOWN_SCHEMA "cusown_ops"

extern char *cusown_app_schema; /* which attached application; "" = the one */
extern int	cusown_booking_ttl; /* seconds until a pending booking is due */
extern int	cusown_processing_grace;	/* seconds a payment counts as in
										 * flight */
extern int	cusown_paid_pending_grace;	/* seconds a paid booking may be
										 * pending */
extern int	cusown_batch_size;	/* bookings looked at in one statement */

extern int	cusown_job_run_retention;	/* ledger rows per job and outcome */
extern int	cusown_change_retention;	/* seconds that changes are kept */
extern bool cusown_notify;		/* whether changes are told by NOTIFY */
extern int	cusown_lazy_expire_interval;	/* seconds between lazy heals */

extern int	cusown_undo_window; /* seconds in which an answer can be undone */
extern bool cusown_confirm_past;	/* whether what is over can be confirmed */

extern int	cusown_webhook_ttl; /* seconds an event waits for its payment */
extern int	cusown_webhook_retention;	/* seconds that bodies are kept */

extern int	cusown_alert_hold;	/* seconds until a quiet alert is resolved */

#define CUSOWN_MAX_BATCH_SIZE 10000

#endif							/* CUSOWN_OPS_H */
