#include <initializer_list>

#include "core/call.hpp"
#include "core/check_parts.hpp"
#include "core/error.hpp"
#include "core/statistics.hpp"

namespace bnext {
namespace {

class Checker {
public:
    explicit Checker(const Call& call) : call_(call) {}

    void run() const {
        if (call_.from_forward != nullptr) of_same_norm();
        switch (call_.function) {
            case Function::forward:
            case Function::collect_stats: return forward();
            case Function::normalize:
            case Function::normalize_by_running: return normalize();
            case Function::apply_norm: return apply_norm();
            case Function::recompute: return recompute();
            case Function::moments: return data();
            case Function::restored: return restored();
            case Function::move_running: check_counter(); return running(call_.from_forward->dtype);
            case Function::backward:
            case Function::backward_reduce:
            case Function::backward_apply: return backward();
            case Function::backward_constant: return backward_constant();
            case Function::double_backward: return double_backward();
            case Function::parameter_gradients: return sums();
            case Function::cell_forward: return cell_forward();
            case Function::cell_backward: return backward();
            case Function::cell_restored: return cell_restored();
            case Function::rows_forward:
            case Function::rows_collect:
            case Function::rows_apply:
            case Function::rows_backward:
            case Function::rows_restored: return check_rows(call_);
        }
    }

private:
    void forward() const {
        data();
        check_eps(call_.eps);
        affine(x().shape());
        running(x().dtype());
        check_counter();
        epilogue();
        if (call_.function == Function::forward) check_more_than_one(x().shape(), count());
        check_in_place(call_);
        out(x().dtype(), x().shape(),
            {Role::x, Role::residual, Role::weight, Role::bias, Role::running_mean,
             Role::running_var},
            Role::x);
    }

    void normalize() const {
        data();
        check_eps(call_.eps);
        const bool by_running = call_.function == Function::normalize_by_running;
        const Role mean = by_running ? Role::running_mean : Role::mean;
        const Role var = by_running ? Role::running_var : Role::var;
        const DType dtype = param_dtype(x().dtype());
        for (const Role role : {mean, var}) {
            statistics(role, dtype, by_running ? dtype : DType::float64, x().shape());
        }
        affine(x().shape());
        epilogue();
        if (by_running) check_in_place(call_);  // else no backward pass follows
        out(x().dtype(), x().shape(),
            {Role::x, Role::residual, mean, var, Role::weight, Role::bias}, Role::x);
    }

    void apply_norm() const {
        data();
        check_eps(call_.eps);
        for (const Role role : {Role::mean, Role::mean_low, Role::m2}) {
            if (role != Role::mean_low || call_.has(role)) statistics(role, DType::float64);
        }
        affine({});
        epilogue();
        check_in_place(call_);
        out(x().dtype(), x().shape(), {Role::x, Role::residual, Role::weight, Role::bias}, Role::x);
    }

    // y of the forward call again.
    void recompute() const {
        const FromForward& saved = *call_.from_forward;
        of_forward();
        if (saved.fused.in_place) {
            value_error("saved: expected of a call that left x as it was, got of one in place");
        }
        if (!saved.has_parameters) {
            value_error(
                "saved: expected with the weight and the bias of the forward call, got "
                "without them");
        }
        if (saved.fused.residual && !call_.has(Role::residual)) {
            value_error(
                "residual: expected the forward call's, since y follows from it, got "
                "None");
        }
        check_residual_again(call_, saved.fused.residual);
        out(saved.dtype, saved.shape, {Role::x, Role::residual});
    }

    void restored() const {
        data();
        check_eps(call_.eps);
        const std::array<Index, 2> shape{kStatisticsRows, call_.channels()};
        required(Role::rows, shape);
        like(Role::rows, DType::float64, shape);
        affine(x().shape());
        epilogue();
        if (call_.applied().keeps_flags()) {
            value_error("epilogue: expected no residual with ", name_of(call_.fused.activation),
                        ", since its flags are not among the statistics");
        }
    }

    // That what is saved is of the norm that is called.
    void of_same_norm() const {
        const bool of_cells = call_.from_forward->groups != 0;
        if (of_cells == call_.is_of_cells()) return;
        throw Error(Error::Kind::saved,
                    concat("saved: expected what ", forward_of(!of_cells), " returned, got what ",
                           forward_of(of_cells), " did"));
    }

    // x (N, ...), its channels, and their groups.
    void cells() const {
        data();
        if (x().rank < 2)
            value_error("x: expected at least 2 dimensions, got ", static_cast<Index>(x().rank));
        if (call_.axis() == 0) {
            value_error(
                "channel_axis: expected an axis behind the first, which has the examples, "
                "got ",
                call_.channel_axis);
        }
        if (call_.num_groups) check_num_groups(*call_.num_groups, call_.channels());
    }

    void cell_forward() const {
        cells();
        check_eps(call_.eps);
        check_negative_slope(call_.fused.negative_slope);
        affine(x().shape());
        if (!call_.num_groups) {
            check_spatial(x().shape(), call_.axis());
        } else {  // as PyTorch: of N examples' groups together
            check_more_than_one(x().shape(), x().size() / *call_.num_groups);
        }
        residual();
        out(x().dtype(), x().shape(), {Role::x, Role::residual, Role::weight, Role::bias});
    }

    void cell_restored() const {
        cells();
        const std::array<Index, 2> shape{kStatisticsRows, x().extent(0) * call_.groups()};
        required(Role::rows, shape);
        like(Role::rows, DType::float64, shape);
        check_eps(call_.eps);
        residual();
    }

    // That x, or y in its place, is the forward call's.
    void of_forward() const {
        const FromForward& saved = *call_.from_forward;
        check_x();
        if (!std::ranges::equal(saved.shape, x().shape())) {
            of_another("an input of shape ", shape_text(saved.shape), ", got x of shape ",
                       shape_text(x().shape()));
        }
        if (!x().is(saved.dtype)) {
            of_another("a ", name_of(saved.dtype), " input, got x of ", name_of(x().dtype()));
        }
        if (saved.fingerprint != nullptr && *saved.fingerprint != fingerprint_of(x())) {
            if (!saved.fused.in_place) {
                of_another("another x, or x was changed since (their elements differ)");
            }
            of_another(
                "another y than is given in place of x, or it was changed since (their "
                "elements differ)");
        }
    }

    void backward() const {
        const FromForward& saved = *call_.from_forward;
        of_forward();
        like(Role::dy, saved.dtype, saved.shape);
        check_residual_again(call_, saved.reads_residual());
        if (call_.function == Function::backward_apply) sums();
        parameter(Role::weight, {});
        out_over_dy({Role::dy, Role::x, Role::residual, Role::weight});
    }

    void double_backward() const {
        const FromForward& saved = *call_.from_forward;
        of_forward();
        if (saved.fused.in_place) {
            value_error("saved: expected of a call that left x as it was, got of one in place");
        }
        if (saved.weighted) {
            value_error("saved: expected of a call in which all positions count, got of another");
        }
        like(Role::dy, saved.dtype, saved.shape);
        check_residual_again(call_, saved.reads_residual());
        if (!saved.fused.residual && call_.has(Role::ddresidual)) {
            value_error("ddresidual: expected None, since the forward call had no residual");
        }
        for (const Role role : {Role::ddx, Role::ddresidual}) {
            if (call_.has(role)) like(role, saved.dtype, saved.shape);
        }
        for (const Role role : {Role::weight, Role::ddweight, Role::ddbias}) parameter(role, {});
    }

    void out_over_dy(std::initializer_list<Role> inputs) const {
        check_not_over_dresidual(call_);
        out(call_.from_forward->dtype, call_.from_forward->shape, inputs, Role::dy);
    }

    void backward_constant() const {
        const FromForward& saved = *call_.from_forward;
        if (saved.batch_statistics) {
            value_error("saved: expected given statistics, which are constants, got a batch's");
        }
        if (saved.fused.changes_backward()) {
            value_error("x: expected the input of the forward call, since the derivative of ",
                        name_of(saved.fused.activation), " follows from it, got None");
        }
        like(Role::dy, saved.dtype, saved.shape);
        parameter(Role::weight, {});
        out_over_dy({Role::dy, Role::weight});
    }

    void sums() const {
        for (const Role role : {Role::sum_dy, Role::sum_dy_xmu}) {
            statistics(role, DType::float64);
        }
    }

    [[nodiscard]] const ArrayRef& x() const { return call_[Role::x]; }
    [[nodiscard]] Index count() const {  // values per channel
        const Index axis = call_.axis();
        Index product = 1;
        for (Index a = 0; a < x().rank; ++a) product *= a == axis ? 1 : x().extent(a);
        return product;
    }
    [[nodiscard]] DType parameters() const {
        const auto* from = call_.from_forward;
        return param_dtype(from != nullptr ? from->dtype : x().dtype());
    }

    void check_x() const { bnext::check_x(call_); }

    void data() const {
        check_x();
        check_axis(call_.channel_axis, x().rank, call_.axis_text);
    }

    void like(Role role, DType dtype, std::span<const Index> shape) const {
        check_like(call_, role, dtype, shape);
    }

    void vector(Role role, DType dtype, DType other, std::span<const Index> x) const {
        const char* name = name_of(role);
        check_dtype(call_[role], name, dtype, other);
        check_shape(call_[role], name, std::array{call_.channels()}, x);
    }

    void parameter(Role role, std::span<const Index> x) const {
        if (call_.has(role)) vector(role, parameters(), parameters(), x);
    }

    void affine(std::span<const Index> x) const {
        parameter(Role::weight, x);
        parameter(Role::bias, x);
    }

    void required(Role role, std::span<const Index> shape) const {
        if (call_.has(role) && call_[role].is_array) return;
        type_error(name_of(role), ": expected an array of shape ", shape_text(shape), ", got ",
                   call_.has(role) ? call_[role].type_text() : "None");
    }
    void required(Role role) const { required(role, std::array{call_.channels()}); }

    void statistics(Role role, DType dtype, DType other, std::span<const Index> x) const {
        required(role);
        vector(role, dtype, other, x);
    }
    void statistics(Role role, DType dtype) const { statistics(role, dtype, dtype, {}); }

    // Calls in place have no room for the values at positions that do not count.
    void weighting() const {
        if (call_.weighting == nullptr || !call_.applied().in_place) return;
        value_error(call_.weighting, ": expected None beside out=x, a call in place, got both");
    }

    void epilogue() const {
        weighting();
        check_negative_slope(call_.fused.negative_slope);
        residual();
    }
    void residual() const {
        if (call_.has(Role::residual)) like(Role::residual, x().dtype(), x().shape());
    }

    // Updated in place: both or neither.
    void running(DType dtype) const {
        if (!call_.has(Role::running_mean) && !call_.has(Role::running_var)) return;
        for (const Role role : {Role::running_mean, Role::running_var}) {
            required(role);
            vector(role, param_dtype(dtype), param_dtype(dtype), {});
            check_writeable(call_[role], name_of(role));
        }
        check_momentum(call_.momentum);
    }

    static void check_writeable(const ArrayRef& array, const char* name) {
        if (array.place == Place::cuda && !(array.writeable && array.c_contiguous)) {
            value_error(name, ": expected a writeable, contiguous array, got one that is not");
        }
        if (!array.writeable) {
            value_error(name, ": expected a writeable array, got a read-only one (", name,
                        ".copy() is writeable)");
        }
        if (!array.viewable) {
            value_error(name, ": expected an aligned array, got one that is not (", name,
                        ".copy() is aligned)");
        }
        if (array.extent(0) > 1 && array.strides[0] == 0) {
            value_error(name, ": expected an element for each channel, got one for all");
        }
    }

    void check_counter() const {
        for (const Role role : {Role::num_batches_tracked, Role::num_batches_skipped}) {
            if (call_.has(role)) bnext::check_counter(call_[role], name_of(role));
        }
        // There kernels move running statistics before the host knows whether they are finite.
        if (call_.has(Role::num_batches_skipped) && call_.has(Role::running_mean) &&
            call_[Role::running_mean].place == Place::cuda) {
            value_error(
                "num_batches_skipped: expected None for running statistics on a GPU, where "
                "no batch is skipped, got a counter (skip_nonfinite=False)");
        }
    }

    void out(DType dtype, std::span<const Index> shape, std::initializer_list<Role> inputs,
             Role over = Role::out) const {
        check_out(call_, dtype, shape, inputs, over);
    }

    const Call& call_;
};

}  // namespace

void check(const Call& call) { Checker(call).run(); }

}  // namespace bnext
