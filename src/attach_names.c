/*-------------------------------------------------------------------------
 *
 * attach_names.c
 *	  The canonical names, and what each must be in an application.
 *
 * The table attach_names below is the whole vocabulary of our templates.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "attach.h"

/* how DDL of ours writes each NameType */
const char *const attach_type_names[] = {
	"", "uuid", "text", "text", "text", "timestamp with time zone", "date",
	"time without time zone", "integer", "bigint", "boolean", "jsonb"
};

const CanonicalName attach_names[] = {
	{"bookings", "", TYPE_TABLE, NEEDED, NULL},
	{"bookings", "id", TYPE_UUID, NEEDED, NULL},
	{"bookings", "slot_id", TYPE_UUID, NEEDED, NULL},
	{"bookings", "status", TYPE_STATUS, NEEDED, NULL},
	{"bookings", "created_at", TYPE_TIMESTAMPTZ, NEEDED, NULL},
	{"bookings", "business_id", TYPE_UUID, OPTIONAL, NULL},
	{"bookings", "customer_id", TYPE_UUID, OPTIONAL, "customer_user_id"},
	{"bookings", "customer_name", TYPE_TEXT, OPTIONAL, NULL},
	{"bookings", "customer_phone", TYPE_TEXT, OPTIONAL, NULL},
	{"bookings", "payment_required", TYPE_BOOLEAN, OPTIONAL, NULL},
	{"bookings", "payment_type", TYPE_LABEL, OPTIONAL, NULL},
	{"bookings", "updated_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"bookings", "cancelled_by", TYPE_LABEL, OPTIONAL, NULL},
	{"bookings", "cancelled_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"bookings", "cancellation_reason", TYPE_TEXT, OPTIONAL, NULL},
	{"bookings", "undo_used_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"bookings", "total_duration", TYPE_INTEGER, OPTIONAL, "total_duration_minutes"},
	{"bookings", "no_show", TYPE_BOOLEAN, OPTIONAL, NULL},
	{"bookings", "no_show_marked_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"bookings", "no_show_marked_by", TYPE_LABEL, OPTIONAL, NULL},

	{"slots", "", TYPE_TABLE, NEEDED, NULL},
	{"slots", "id", TYPE_UUID, NEEDED, NULL},
	{"slots", "status", TYPE_STATUS, NEEDED, NULL},
	{"slots", "date", TYPE_DATE, WALL_CLOCK, NULL},
	{"slots", "start_time", TYPE_TIME, WALL_CLOCK, NULL},
	{"slots", "end_time", TYPE_TIME, WALL_CLOCK, NULL},
	{"slots", "starts_at", TYPE_TIMESTAMPTZ, INSTANT, NULL},
	{"slots", "ends_at", TYPE_TIMESTAMPTZ, INSTANT, NULL},
	{"slots", "business_id", TYPE_UUID, OPTIONAL, NULL},
	{"slots", "reserved_until", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"slots", "updated_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},

	{"audit_logs", "", TYPE_TABLE, NEEDED, NULL},
	{"audit_logs", "action", TYPE_TEXT, NEEDED, "action_type"},
	{"audit_logs", "entity_type", TYPE_TEXT, NEEDED, NULL},
	{"audit_logs", "entity_id", TYPE_UUID, NEEDED, NULL},
	{"audit_logs", "created_at", TYPE_TIMESTAMPTZ, NEEDED, NULL},
	{"audit_logs", "actor_id", TYPE_UUID, OPTIONAL, "admin_user_id"},
	{"audit_logs", "actor_role", TYPE_TEXT, OPTIONAL, NULL},
	{"audit_logs", "old_data", TYPE_JSONB, OPTIONAL, NULL},
	{"audit_logs", "new_data", TYPE_JSONB, OPTIONAL, NULL},
	{"audit_logs", "metadata", TYPE_JSONB, OPTIONAL, NULL},
	{"audit_logs", "description", TYPE_TEXT, OPTIONAL, NULL},
	{"audit_logs", "severity", TYPE_TEXT, OPTIONAL, NULL},
	{"audit_logs", "ip_address", TYPE_TEXT, OPTIONAL, NULL},
	{"audit_logs", "user_agent", TYPE_TEXT, OPTIONAL, NULL},

	{"businesses", "", TYPE_TABLE, OPTIONAL, NULL},
	{"businesses", "id", TYPE_UUID, NEEDED, NULL},
	{"businesses", "timezone", TYPE_TEXT, OPTIONAL, NULL},
	{"businesses", "concurrent_booking_capacity", TYPE_INTEGER, OPTIONAL, NULL},

	{"payments", "", TYPE_TABLE, OPTIONAL, NULL},
	{"payments", "id", TYPE_UUID, NEEDED, NULL},
	{"payments", "booking_id", TYPE_UUID, NEEDED, NULL},
	{"payments", "status", TYPE_STATUS, NEEDED, NULL},
	{"payments", "created_at", TYPE_TIMESTAMPTZ, NEEDED, NULL},
	{"payments", "provider", TYPE_LABEL, OPTIONAL, NULL},
	{"payments", "provider_ref", TYPE_TEXT, OPTIONAL, "provider_payment_id"},
	{"payments", "amount", TYPE_INTEGER, OPTIONAL, "amount_cents"},
	{"payments", "currency", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "order_id", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "transaction_id", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "webhook_payload_hash", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "webhook_received_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"payments", "webhook_signature", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "expires_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"payments", "updated_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"payments", "verified_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"payments", "verified_by", TYPE_UUID, OPTIONAL, NULL},
	{"payments", "verification_method", TYPE_LABEL, OPTIONAL, NULL},
	{"payments", "failure_reason", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "attempt_count", TYPE_INTEGER, OPTIONAL, NULL},
	{"payments", "refund_amount", TYPE_INTEGER, OPTIONAL, "refund_amount_cents"},
	{"payments", "refund_reason", TYPE_TEXT, OPTIONAL, NULL},
	{"payments", "refunded_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"payments", "refunded_by", TYPE_UUID, OPTIONAL, NULL},

	{"payment_audit_logs", "", TYPE_TABLE, OPTIONAL, NULL},
	{"payment_audit_logs", "payment_id", TYPE_UUID, NEEDED, NULL},
	{"payment_audit_logs", "actor_type", TYPE_LABEL, NEEDED, NULL},
	{"payment_audit_logs", "action", TYPE_TEXT, NEEDED, NULL},
	{"payment_audit_logs", "from_status", TYPE_LABEL, OPTIONAL, NULL},
	{"payment_audit_logs", "to_status", TYPE_LABEL, OPTIONAL, NULL},
	{"payment_audit_logs", "actor_id", TYPE_UUID, OPTIONAL, NULL},
	{"payment_audit_logs", "reason", TYPE_TEXT, OPTIONAL, NULL},
	{"payment_audit_logs", "metadata", TYPE_JSONB, OPTIONAL, NULL},
	{"payment_audit_logs", "created_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},

	{"cron_run_logs", "", TYPE_TABLE, OPTIONAL, NULL},
	{"cron_run_logs", "job_name", TYPE_TEXT, NEEDED, NULL},
	{"cron_run_logs", "started_at", TYPE_TIMESTAMPTZ, NEEDED, NULL},
	{"cron_run_logs", "completed_at", TYPE_TIMESTAMPTZ, NEEDED, NULL},
	{"cron_run_logs", "status", TYPE_LABEL, NEEDED, NULL},
	{"cron_run_logs", "duration_ms", TYPE_INTEGER, OPTIONAL, NULL},
	{"cron_run_logs", "error_message", TYPE_TEXT, OPTIONAL, NULL},

	{"metrics", "", TYPE_TABLE, OPTIONAL, NULL},
	{"metrics", "metric", TYPE_TEXT, NEEDED, NULL},
	{"metrics", "value", TYPE_BIGINT, NEEDED, NULL},
	{"metrics", "updated_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},

	{"booking_lifecycle_audit", "", TYPE_TABLE, OPTIONAL, NULL},
	{"booking_lifecycle_audit", "booking_id", TYPE_UUID, NEEDED, NULL},
	{"booking_lifecycle_audit", "old_slot_id", TYPE_UUID, NEEDED, NULL},
	{"booking_lifecycle_audit", "new_slot_id", TYPE_UUID, OPTIONAL, NULL},
	{"booking_lifecycle_audit", "action_type", TYPE_TEXT, NEEDED, NULL},
	{"booking_lifecycle_audit", "actor_type", TYPE_TEXT, NEEDED, NULL},
	{"booking_lifecycle_audit", "created_at", TYPE_TIMESTAMPTZ, NEEDED, NULL},

	{"idempotency_keys", "", TYPE_TABLE, OPTIONAL, NULL},
	{"idempotency_keys", "key", TYPE_TEXT, NEEDED, NULL},
	{"idempotency_keys", "resource_type", TYPE_TEXT, NEEDED, NULL},
	{"idempotency_keys", "result_id", TYPE_UUID, OPTIONAL, NULL},
	{"idempotency_keys", "created_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{"idempotency_keys", "expires_at", TYPE_TIMESTAMPTZ, OPTIONAL, NULL},
	{NULL}
};

const UsedLabels attach_used_labels[] = {
	{"bookings", "status", {"pending", "confirmed", "rejected", "cancelled"}},
	{"bookings", "cancelled_by", {"customer", "owner", "system"}},
	{"bookings", "no_show_marked_by", {"system"}},
	{"slots", "status", {"available", "reserved", "booked"}},
	{"payments", "status", {"initiated", "pending", "processing", "completed",
	"failed", "refunded", "partially_refunded", "expired"}},
	{"payments", "verification_method", {"manual", "polling", "webhook"}},
	{"payment_audit_logs", "actor_type", {"owner", "system"}},
	{"payment_audit_logs", "from_status", {"initiated", "pending", "processing",
	"completed", "failed", "refunded", "partially_refunded", "expired"}},
	{"payment_audit_logs", "to_status", {"initiated", "pending", "processing",
	"completed", "failed", "refunded", "partially_refunded", "expired"}},
	{NULL}
};

/* whether the vocabulary has it; attribute is "" for the relation itself */
bool
attach_is_canonical(const char *relation, const char *attribute)
{
	for (const CanonicalName *name = attach_names; name->relation != NULL;
		 name++)
	{
		if (strcmp(name->relation, relation) == 0 &&
			strcmp(name->attribute, attribute) == 0)
			return true;
	}
	return false;
}
