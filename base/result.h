// Result<T>: a value or an Error that reads as one chain of causes.
//
// Host and operator trouble travels in a Result up to main, which prints it once. Guest-caused
// trouble never becomes an Error (it gets hardware semantics), and a broken invariant is a CHECK.
// Values; any thread.
#pragma once

#include <fmt/format.h>

#include <expected>
#include <string>
#include <utility>

namespace crossbar {

class [[nodiscard]] Error {
 public:
  // `code` is a positive errno value, or 0 where no system call was involved.
  Error(int code, std::string message) : code_(code), message_(std::move(message)) {}

  template <typename... Args>
  static Error Of(fmt::format_string<Args...> format, Args&&... args) {
    return Error(0, fmt::format(format, std::forward<Args>(args)...));
  }

  // Puts what the caller was doing in front: "cannot start vCPU 3: KVM_CREATE_VCPU: ...".
  Error Within(std::string_view doing) && {
    message_ = fmt::format("{}: {}", doing, message_);
    return std::move(*this);
  }

  // The next step for the person who reads this. The innermost hint wins: it knows most.
  Error WithHint(std::string_view hint) && {
    if (hint_.empty()) hint_ = hint;
    return std::move(*this);
  }

  int code() const { return code_; }
  const std::string& message() const { return message_; }
  const std::string& hint() const { return hint_; }

  // One line: the chain of causes, then the next step.
  std::string ToString() const {
    return hint_.empty() ? message_ : fmt::format("{}; {}", message_, hint_);
  }

 private:
  int code_;
  std::string message_;
  std::string hint_;
};

template <typename T = void>
using Result = std::expected<T, Error>;

// Returns an Error built from a format string out of a function that returns a Result.
template <typename... Args>
std::unexpected<Error> Fail(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error::Of(format, std::forward<Args>(args)...));
}

// Adds context to the error of `result`; `doing` is a callable that returns the text, run only
// then.
template <typename T, typename Doing>
Result<T> Within(Result<T> result, Doing&& doing) {
  if (result) return result;
  return std::unexpected(std::move(result).error().Within(doing()));
}

}  // namespace crossbar

#define CROSSBAR_CONCAT_(a, b) a##b
#define CROSSBAR_CONCAT(a, b) CROSSBAR_CONCAT_(a, b)

#define CROSSBAR_TRY_(result, expression)                                                   \
  ({                                                                                        \
    auto result = (expression);                                                             \
    if (!result) [[unlikely]]                                                               \
      return std::unexpected(std::move(result).error());                                    \
    *std::move(result);                                                                     \
  })

// The value of a Result expression, or an early return of its error. Not among the arguments of a
// `new` or of anything else whose parts are half done by then: leaving would leak them.
#define TRY(expression) CROSSBAR_TRY_(CROSSBAR_CONCAT(try_result_, __COUNTER__), expression)
