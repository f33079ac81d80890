/* ---------- payment mismatch: payments and bookings at odds ---------- */

CREATE FUNCTION @extschema@.cusown_payment_mismatches(
  OUT kind text,
  OUT severity text,
  OUT id uuid,
  OUT finding text,
  OUT command text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'cusown_payment_mismatches';

COMMENT ON FUNCTION @extschema@.cusown_payment_mismatches() IS
'Payments and bookings that contradict each other, the worst first; writes nothing, works on a standby.
Returns kind and severity (critical, warning, info); id: of the payment, or of the booking for paid_twice and unpaid; finding; command: what to run next.
paid_twice, critical: a booking with more than one completed payment. over_refunded, critical: more was refunded than paid. paid_cancelled, critical: completed, but the booking is cancelled or rejected. shared_ref, critical where more than one is completed, else warning: the provider''s own provider_ref on several payments of a provider; id: the first of them. paid_pending, warning: completed longer than cusown_ops.paid_pending_grace ago, but the booking is pending. unpaid, warning: a confirmed booking that requires payment, not in cash, has never had a completed payment and none under way since cusown_ops.processing_grace; finding: status of the last one. processing, info: for longer than a day; most are checkouts that were given up.
A kind whose columns are not bound is left out with a notice.
Errors: UO001 no application attached, or no payments; 42501 row-level security would hide rows.
Source: runbook Payment Mismatch, symptoms and step 1.';

